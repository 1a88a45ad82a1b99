"""What CM3's masks teach: `miniature/rivals/cm3leon_medium` again, masked otherwise each time."""
