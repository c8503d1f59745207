"""Conversion of users' files to tensors: image processor, processor, chat template, medical formats."""
