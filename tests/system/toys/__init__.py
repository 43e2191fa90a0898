"""Parts as a developer would add them, and what each of them changes in the package."""
