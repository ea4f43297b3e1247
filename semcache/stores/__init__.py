"""Where entries are kept outside the process: connections, the store's clock, what is durable and when."""
