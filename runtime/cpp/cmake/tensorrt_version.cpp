// Compiles where the headers are those of a TensorRT that the backend is written for.

#include <NvInferVersion.h>

#if !defined(TRT_MAJOR_RTX) && NV_TENSORRT_MAJOR < 10
#error "TensorRT 10, or any TensorRT-RTX"
#endif
