"""UniMed-5M: from unimodal medical data sets to interleaved multimodal records, checked and published."""
