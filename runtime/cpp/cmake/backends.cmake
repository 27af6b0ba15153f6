# Looks for the runtimes: sets OpenVINO_FOUND, CMT_ONNXRUNTIME_FOUND and CMT_TENSORRT_FOUND, and
# says of each that is left out why.

# `partly`: there is some of it, so that whoever configures may expect it.
function(cmt_left_out name switch partly reason)
  if(NOT switch STREQUAL "AUTO")
    message(FATAL_ERROR "cmt_runtime: no ${name}: ${reason}")
  elseif(partly)
    message(WARNING "cmt_runtime: without ${name}: ${reason}")
  else()
    message(STATUS "cmt_runtime: without ${name}: ${reason}")
  endif()
endfunction()

if(CMT_OPENVINO)
  find_package(OpenVINO QUIET COMPONENTS Runtime)
  if(NOT OpenVINO_FOUND)
    cmt_left_out("OpenVINO" "${CMT_OPENVINO}" FALSE
                 "give -DOpenVINO_DIR=FOLDER, for a wheel .../site-packages/openvino/cmake")
  endif()
endif()

# Releases and distributions put the headers in different places and not all have CMake files.
if(CMT_ONNXRUNTIME)
  find_path(CMT_ONNXRUNTIME_INCLUDE onnxruntime_cxx_api.h HINTS "${CMT_ONNXRUNTIME_ROOT}"
            PATH_SUFFIXES include include/onnxruntime onnxruntime)
  find_library(CMT_ONNXRUNTIME_LIBRARY onnxruntime HINTS "${CMT_ONNXRUNTIME_ROOT}/lib")
  set(missing "")
  if(NOT CMT_ONNXRUNTIME_INCLUDE)
    string(APPEND missing "its headers (onnxruntime_cxx_api.h) are not found, ")
  endif()
  if(NOT CMT_ONNXRUNTIME_LIBRARY)
    string(APPEND missing "its library (libonnxruntime.so) is not found, ")
  endif()
  if(missing)
    set(partly FALSE)
    if(CMT_ONNXRUNTIME_INCLUDE OR CMT_ONNXRUNTIME_LIBRARY)
      set(partly TRUE)
    endif()
    cmt_left_out("ONNX Runtime" "${CMT_ONNXRUNTIME}" ${partly}
                 "${missing}give -DCMT_ONNXRUNTIME_ROOT=FOLDER of a release, with include and lib")
  else()
    set(CMT_ONNXRUNTIME_FOUND TRUE)
  endif()
endif()

# Wheels and releases differ in where the files are and have no unversioned library names.
if(CMT_TENSORRT)
  find_package(CUDAToolkit QUIET)  # needs nvcc, which a device may lack
  find_path(CMT_TENSORRT_INCLUDE NvInferRuntime.h HINTS "${CMT_TENSORRT_ROOT}"
            PATH_SUFFIXES include)
  find_library(CMT_TENSORRT_LIBRARY NAMES nvinfer tensorrt_rtx libtensorrt_rtx.so.1
               HINTS "${CMT_TENSORRT_ROOT}" PATH_SUFFIXES lib)
  find_path(CMT_CUDA_INCLUDE cuda_runtime_api.h
            HINTS "${CMT_CUDA_ROOT}" ${CUDAToolkit_INCLUDE_DIRS}
            PATHS /usr/local/cuda PATH_SUFFIXES include)
  find_library(CMT_CUDA_LIBRARY NAMES cudart libcudart.so.13 libcudart.so.12
               HINTS "${CMT_CUDA_ROOT}" ${CUDAToolkit_LIBRARY_DIR}
               PATHS /usr/local/cuda PATH_SUFFIXES lib lib64)
  set(missing "")
  foreach(part "TENSORRT_INCLUDE:NvInferRuntime.h" "TENSORRT_LIBRARY:TensorRT's library"
               "CUDA_INCLUDE:cuda_runtime_api.h" "CUDA_LIBRARY:CUDA's library cudart")
    string(REPLACE ":" ";" part "${part}")
    list(GET part 0 variable)
    list(GET part 1 words)
    if(NOT CMT_${variable})
      string(APPEND missing "${words} is not found, ")
    endif()
  endforeach()
  if(missing)
    cmt_left_out("TensorRT" "${CMT_TENSORRT}" "${CMT_TENSORRT_INCLUDE}"
                 "${missing}give -DCMT_TENSORRT_ROOT=FOLDER and -DCMT_CUDA_ROOT=FOLDER")
  else()
    # By the compiler, for later headers define one macro by another.
    set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
    try_compile(CMT_TENSORRT_FOUND "${CMAKE_CURRENT_BINARY_DIR}/tensorrt_version"
                "${CMAKE_CURRENT_LIST_DIR}/tensorrt_version.cpp"
                CMAKE_FLAGS "-DINCLUDE_DIRECTORIES=${CMT_TENSORRT_INCLUDE}")
    unset(CMAKE_TRY_COMPILE_TARGET_TYPE)
    if(NOT CMT_TENSORRT_FOUND)
      cmt_left_out("TensorRT" "${CMT_TENSORRT}" TRUE "the headers in ${CMT_TENSORRT_INCLUDE} are \
older than TensorRT 10, which the engines are for: give -DCMT_TENSORRT_ROOT=FOLDER of a newer one")
    endif()
  endif()
endif()

if(NOT OpenVINO_FOUND AND NOT CMT_ONNXRUNTIME_FOUND AND NOT CMT_TENSORRT_FOUND)
  message(WARNING "cmt_runtime: no backend found, so no file can be run")
endif()
