"""What may be pruned: sites, masks, and what a site shows of itself."""
