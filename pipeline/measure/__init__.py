"""What an edit did."""
