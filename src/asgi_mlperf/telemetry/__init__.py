"""Where the time went: request and inference metrics, event-loop lag, and their exposition."""
