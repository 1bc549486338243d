"""What adapter files hold, where in a model that belongs, and putting it there. Imports request, models, attention."""
