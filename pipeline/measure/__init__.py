"""What an edit did to what the model says."""
