// cmt_check BUNDLE: does this program compute what the exporting machine did?

#include <algorithm>
#include <cmt/error.hpp>
#include <cmt/image.hpp>
#include <cstdio>
#include <cstdlib>

#include "../src/golden.hpp"
#include "../src/preprocessing.hpp"
#include "command.hpp"

namespace {

constexpr const char* kUsage =
    "usage: cmt_check BUNDLE [--threads N] [--device NAME] [--trust KEY | --trust-unsigned]\n"
    "\n"
    "Checks the sha256 of every file, prepares the golden photo, and runs every file that this\n"
    "build can on the golden images. Exit status: 0 all is as it was when the bundle was made;\n"
    "1 something differs; 2 the bundle is unusable, or nothing in it can be run; 3 the machine\n"
    "failed, or what was found could not be written.\n"
    "  --threads N      CPU threads; default: all\n"
    "  --device NAME    of OpenVINO's, such as GPU, NPU, AUTO; default: the CPU\n";

bool report(bool passed, const std::string& name, const std::string& detail) {
  std::printf("%-8s%s: %s\n", passed ? "ok" : "FAILED", cmt::printable(name).c_str(),
              detail.c_str());
  return passed;
}

bool check_preprocessing(const cmt::Bundle& bundle) {
  const cmt::Manifest& manifest = bundle.manifest();
  const cmt::Preprocessing& p = manifest.preprocessing;
  const auto expected =
      cmt::read_pixels(bundle, manifest.golden_pixels,
                       {static_cast<std::size_t>(p.height), static_cast<std::size_t>(p.width), 3});
  const cmt::Image photo = cmt::read_image(bundle.path(manifest.golden_photo));
  cmt::Preprocessor preprocessor(p);
  const std::uint8_t* pixels = preprocessor.resize(photo.view());
  int difference = 0;
  for (std::size_t i = 0; i < expected.values.size(); ++i) {
    difference = std::max(difference, std::abs(pixels[i] - expected.values[i]));
  }
  return report(difference <= manifest.max_grey_levels, "preprocessing",
                "differs by " + std::to_string(difference) + " grey levels, " +
                    std::to_string(manifest.max_grey_levels) + " allowed");
}

void skip(const cmt::Artefact& artefact, const std::string& reason) {
  std::printf("%-8s%s: %s\n", "skipped", cmt::printable(artefact.file.path).c_str(),
              cmt::printable(reason).c_str());
}

bool check_artefact(const cmt::Bundle& bundle, const cmt::Artefact& artefact, int threads,
                    const std::string& device) {
  const cmt::Check check = cmt::check_golden(
      bundle, artefact, device, [&] { return cmt::load_model(bundle, artefact, threads, device); });
  if (check.passed) {
    const std::string place = device.empty() ? "" : " on " + device;
    return report(*check.passed, artefact.file.path + place, check.detail);
  }
  skip(artefact, check.detail);
  return true;
}

int check(const cmt::tools::Arguments& arguments) {
  const int threads = cmt::tools::threads(arguments);
  const std::string device = cmt::tools::device(arguments);
  const cmt::Bundle bundle(arguments.positional.front(), cmt::tools::trust(arguments));
  cmt::require_device(bundle, device);
  if (arguments.has("trust")) report(true, "signature", "made with the key of --trust");
  bool passed = check_preprocessing(bundle);
  bool ran = false;
  for (const cmt::Artefact& artefact : bundle.manifest().artefacts) {
    if (const auto reason = cmt::not_runnable(bundle, artefact, device)) {
      skip(artefact, *reason);
      continue;
    }
    ran = true;
    passed = check_artefact(bundle, artefact, threads, device) && passed;
  }
  if (!ran) throw cmt::InputError("nothing was verified: none of the files can be run here");
  return passed ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  return cmt::tools::run(argc, argv, {kUsage, {"threads", "device"}, {}, 1}, check);
}
