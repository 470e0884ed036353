"""
An ONNX file with its weights in eight bits, by ONNX Runtime's dynamic quantisation.

The matrices of linear layers are stored in int8, with a scale for each output, and their inputs are quantised while
the graph runs, with one scale for a forward. Embeddings are stored in int8 and unpacked row by row, as they are looked
up: what follows them is computed in fp32. So are layer norms and attention between its linear layers.
"""

import logging
from pathlib import Path

from sinkd_llm.answering.onnx_reading import METADATA_KEY, OnnxReading
from sinkd_llm.answering.onnx_student import ONNX_FILE
from sinkd_llm.errors import InputError, first_line
from sinkd_llm.library_errors import is_memory_full

# Which operators' weights are quantised: linear layers, and the look-up in a table of embeddings.
OPERATORS = ("MatMul", "Gemm", "Gather")
_UNQUANTISED = "unquantised.onnx"
# ONNX Runtime's advice to infer shapes first, which torch's exporter has done.
_ADVICE = "Please consider to run pre-processing before quantization"


def quantise(folder: Path, reading: OnnxReading) -> None:
    """
    Quantises the `model.onnx` in a folder; the file takes the place of the one in fp32.

    Args:
        folder (`Path`): with what [`~sinkd_llm.exporting.onnx_graph.write_onnx`] wrote.
        reading ([`OnnxReading`]): of the student; in the new file it says that rows are answered one by one.

    Raises:
        InputError: if ONNX Runtime cannot quantise the graph.
    """
    import dataclasses

    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole, packed = folder / _UNQUANTISED, folder / ONNX_FILE
    packed.rename(whole)
    try:
        logging.getLogger().addFilter(_is_no_advice)
        quantize_dynamic(
            whole,
            packed,
            op_types_to_quantize=list(OPERATORS),
            per_channel=True,
            weight_type=QuantType.QInt8,
            # Seven bits of the eight: sums of two products then fit 16 bits on processors without VNNI, which would
            # cut off larger ones, and the file gives the same answers on all.
            reduce_range=True,
        )
        model = onnx.load(packed)
        onnx.helper.set_model_props(model, {METADATA_KEY: dataclasses.replace(reading, alone=True).as_text()})
        onnx.save(model, packed)
    except OSError:
        raise
    except Exception as error:  # of no type of its own
        if is_memory_full(error):
            raise
        raise InputError(
            f"ONNX Runtime cannot quantise this student ({first_line(error)}); give --format onnx."
        ) from error
    finally:
        logging.getLogger().removeFilter(_is_no_advice)
        whole.unlink(missing_ok=True)


def _is_no_advice(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_ADVICE)
