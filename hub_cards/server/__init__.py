"""An OpenAI endpoint for one loaded model: text by transformers' serving classes, images, limits, metrics."""
