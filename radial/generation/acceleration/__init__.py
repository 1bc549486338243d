"""What a run leaves out to be faster: guidance in some steps, and what hardly changes from one step to the next;
and what runs do together."""
