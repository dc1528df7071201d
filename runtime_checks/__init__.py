"""Checks of QDQ ONNX files with numpy, onnx and onnxruntime only: neither torch nor the exporter is imported here.

    verify.verify_model(path)       the runtime against the integer reference, the stored vectors, the static proofs
    inspect.inspect_model(path)     what the file holds, and what the runtime makes of each operator
    bisect.bisect_model(path)       the first tensor that differs, why, and a small file that shows it
    findings.findings_of(result)    all that is wrong with a file, as layer, cause and detail
    reference.run_reference(...)    the integer reference by itself

Nothing is imported before it is used, so that `gdfq-export --help` answers at once.
"""
