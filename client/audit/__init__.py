"""What does a model, or an update, give away about this site's patients? Attacks that the site runs on itself."""
