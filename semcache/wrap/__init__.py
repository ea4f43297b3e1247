"""What makes a user's function cached."""
