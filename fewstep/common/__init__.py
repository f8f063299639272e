"""What every room uses: files that appear whole, the command line."""
