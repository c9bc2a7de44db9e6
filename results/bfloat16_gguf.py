"""Write a GGUF file whose matrices are in bfloat16, from one in any precision.

    python results/bfloat16_gguf.py SOURCE OUTPUT

The weights are the source's, dequantised and rounded once: those of a target that is loaded from it
with `--dtype bfloat16`. Vectors, which llama.cpp reads in float32, are rounded too.
"""

import argparse

import gguf

BFLOAT16 = gguf.GGMLQuantizationType.BF16
FILE_TYPE = "general.file_type"
KEPT_BY_THE_WRITER = "general.architecture"


def write(source: str, output: str) -> None:
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(output, reader.fields[KEPT_BY_THE_WRITER].contents())
    for name, field in reader.fields.items():
        if name == KEPT_BY_THE_WRITER or name.startswith("GGUF."):
            continue
        value = gguf.LlamaFileType.MOSTLY_BF16 if name == FILE_TYPE else field.contents()
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        rounded = gguf.quants.quantize(weights, BFLOAT16)
        if weights.ndim > 1:
            writer.add_tensor(tensor.name, rounded, raw_dtype=BFLOAT16)
        else:
            writer.add_tensor(tensor.name, gguf.quants.dequantize(rounded, BFLOAT16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source")
    parser.add_argument("output")
    arguments = parser.parse_args()
    write(arguments.source, arguments.output)
