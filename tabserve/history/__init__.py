"""What reads the prediction log again: predictions of a window, joined with their labels. Serving never imports it."""
