// Loaded before OpenVINO, a plug-in that is wrong without a word: the answers of each inference are
// in another order.

#include <dlfcn.h>

#include <algorithm>
#include <openvino/runtime/infer_request.hpp>

void ov::InferRequest::infer() {
  using Infer = void (*)(ov::InferRequest*);
  reinterpret_cast<Infer>(dlsym(RTLD_NEXT, "_ZN2ov12InferRequest5inferEv"))(this);
  ov::Tensor answers = get_output_tensor(0);
  std::reverse(answers.data<float>(), answers.data<float>() + answers.get_size());
}
