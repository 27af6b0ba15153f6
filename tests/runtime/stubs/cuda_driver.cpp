// A CUDA driver for tests on machines without: one GPU, or where STUB_GPUS=0 none.

#include <cstdio>
#include <cstdlib>
#include <cstring>

extern "C" {

int cuInit(unsigned int /*flags*/) {
  const char* gpus = std::getenv("STUB_GPUS");
  return gpus != nullptr && std::strcmp(gpus, "0") == 0 ? 100 : 0;
}
int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return 0;
}
int cuDeviceGetName(char* name, int size, int /*device*/) {
  std::snprintf(name, static_cast<std::size_t>(size), "Orin");
  return 0;
}
int cuDriverGetVersion(int* version) {
  *version = 12060;
  return 0;
}

}  // extern "C"
