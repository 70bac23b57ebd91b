"""What can be removed: sites, masks, and the views of a site."""
