"""From metrics to what readers see: tables, checks of claims, figures, the page. Nothing here needs torch."""
