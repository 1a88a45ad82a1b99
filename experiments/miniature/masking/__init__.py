"""What CM3's masks teach: `miniature/rivals/cm3leon` again, each time masked in another way."""
