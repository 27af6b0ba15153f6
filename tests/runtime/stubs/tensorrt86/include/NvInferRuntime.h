#pragma once

// Found, and of no use: what the backend calls came with TensorRT 10.
#include "NvInferVersion.h"
