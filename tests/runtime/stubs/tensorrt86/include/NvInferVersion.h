#pragma once

#define NV_TENSORRT_MAJOR 8
#define NV_TENSORRT_MINOR 6
