"""The bundled world of shapes: scenes, renderer, oracle and judge."""
