// cmt_classify BUNDLE IMAGE...: the most probable classes of image files.

#include <cmt/classifier.hpp>
#include <cmt/error.hpp>
#include <cstdio>
#include <iostream>

#include "command.hpp"

namespace {

constexpr const char* kUsage =
    "usage: cmt_classify BUNDLE IMAGE... [--artefact NAME] [--top-k N] [--threads N] "
    "[--device NAME] [--json] [--trust KEY | --trust-unsigned]\n"
    "\n"
    "Prints the most probable classes of JPEG and PNG files.\n"
    "  --artefact NAME  int8, or openvino/int8; default: int8, else fp16, else fp32\n"
    "  --top-k N        classes per image; default: 5\n"
    "  --threads N      CPU threads; default: all\n"
    "  --device NAME    of OpenVINO's, such as GPU, NPU, AUTO; default: the CPU\n"
    "  --json           one JSON object per line and image\n";

void print_json(const std::string& path, const std::vector<cmt::Prediction>& predictions) {
  nlohmann::ordered_json classes = nlohmann::ordered_json::array();
  for (const cmt::Prediction& p : predictions) {
    classes.push_back({{"index", p.index},
                       {"label", p.label},
                       {"probability", p.probability},
                       {"score", p.score}});
  }
  const nlohmann::ordered_json line{{"image", path}, {"classes", classes}};
  std::cout << cmt::tools::to_text(line, -1) << '\n';
}

void print_text(const std::string& path, const std::vector<cmt::Prediction>& predictions) {
  std::cout << cmt::printable(path) << '\n';
  for (const cmt::Prediction& p : predictions) {
    const std::string name = p.label.empty() ? std::to_string(p.index) : cmt::printable(p.label);
    std::printf("  %8.4f  %s\n", static_cast<double>(p.probability), name.c_str());
  }
}

int classify(const cmt::tools::Arguments& arguments) {
  const auto top_k = static_cast<std::size_t>(arguments.count("top-k", 5, 1, 1000000));
  cmt::Options options{arguments.text("artefact", "")};
  if (arguments.has("threads")) options.threads = cmt::tools::threads(arguments);
  options.trust = cmt::tools::trust(arguments);
  options.device = cmt::tools::device(arguments);
  cmt::Classifier classifier(arguments.positional.front(), options);
  std::cerr << "running " << cmt::printable(classifier.artefact()) << '\n';
  for (std::size_t i = 1; i < arguments.positional.size(); ++i) {
    const std::string& path = arguments.positional[i];
    const cmt::Image image = cmt::read_image(path, classifier.image_range());
    if (const std::string doubts = cmt::doubts(image); !doubts.empty()) {
      std::cerr << "warning: " << cmt::printable(path) << ": " << doubts << '\n';
    }
    const auto& predictions = classifier.classify(image.view(), top_k);
    (arguments.has("json") ? print_json : print_text)(path, predictions);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return cmt::tools::run(
      argc, argv, {kUsage, {"artefact", "top-k", "threads", "device"}, {"json"}, 2}, classify);
}
