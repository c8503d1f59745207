"""From people's files to tensors: image processor, processor, chat template, medical formats."""
