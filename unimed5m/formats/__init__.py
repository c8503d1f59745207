"""Other layouts of the same records, each lossless in both directions.

| module | layout | which records |
|---|---|---|
| `unimedvl_jsonl` | the authors' JSON lines beside a folder of images | all |
| `base64_parquet` | Parquet with base64 images, as in the upstream parts of UniMedVL-5M | all |
| `llava` | LLaVA's JSON lines | those that answer in words only |
| `bagel` | BAGEL's text-to-image and editing Parquet | those that answer with one image |

A record written to any of them and read again is the same record; a foreign file that is read and written again has
the same columns, keys, order and values. What a layout has no place for travels in additional columns or keys, which
its loaders ignore; what we have no field for is kept in `Record.extra`.
"""
