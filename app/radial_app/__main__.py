"""``python -m radial_app`` is the ``radial`` command."""

from radial_app.cli.main import main

if __name__ == "__main__":
    main()
