"""A server that draws, describes and answers: protocol, engine, routes."""
