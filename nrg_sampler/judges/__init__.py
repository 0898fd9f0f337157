"""Who grades finished clips; a judge never guides."""
