#pragma once

#include <cmt/version.h>
#include <cmt/error.hpp>
#include <cmt/image.hpp>

#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace cmt {

struct Prediction {
  std::size_t index = 0;  ///< of the class
  std::string_view
      label;              ///< empty where the bundle has no labels; valid as long as its Classifier
  float probability = 0;  ///< softmax of the scores, 0 to 1
  float score = 0;        ///< the network's raw answer, a logit
};

/// One output of the network, for all images of a call: scores (images, classes), or a feature map
/// (images, channels, height, width).
struct Output {
  std::vector<std::size_t> shape;
  const float* values = nullptr;  ///< the last dimension's side by side
};

/// The most CPU threads that may be asked for.
constexpr int kMostThreads = 4096;

/// Whose native code may run. An engine of TensorRT's is such code: loading one that somebody else
/// made is running their program, so none is loaded of a bundle that nobody vouches for.
struct Trust {
  /// PEM file of an Ed25519 public key. The bundle must then be signed with its private part
  /// (cmt-export --sign), whatever of it runs; its engines may.
  std::filesystem::path key = {};
  /// Runs engines of a bundle without a signature: for one that was made here.
  bool unsigned_engines = false;
};

struct Options {
  /// Which file of the bundle runs: "int8", or "openvino/int8" to name the runtime too. Empty
  /// takes the smallest precision that this build can run: int8, else fp16, else fp32.
  std::string artefact;
  /// CPU threads of the runtime, 1 to kMostThreads; without, what the file was tuned to, else all.
  std::optional<int> threads = {};
  Trust trust = {};
  /// Where it runs, such as GPU, NPU, AUTO, or CUDA; empty takes the CPU, an engine GPU 0.
  /// One that is named has to answer the golden images as the exporting machine did.
  std::string device = {};
};

/// A bundle ready to answer for images.
///
/// One Classifier is for one thread at a time; `share` makes another for each further thread.
/// Calls reuse their memory: once images of the same sizes have been seen, this library
/// allocates nothing. All that it throws is an Error: InputError where the bundle, an image or an
/// argument is unusable, or the Classifier was moved from; MachineError where the machine or its
/// memory fails.
class CMT_API Classifier {
 public:
  /// Opens a bundle, checks the sha256 of every file in it and loads one.
  /// Throws InputError that names the file if the bundle is not as it was written or not signed
  /// as asked for, if its schema is newer, if this build cannot run what is asked for, or if the
  /// device that is asked for answers otherwise than it should.
  explicit Classifier(const std::filesystem::path& bundle, const Options& options = {});
  Classifier(Classifier&& other) noexcept;
  Classifier& operator=(Classifier&& other) noexcept;
  ~Classifier();

  /// Another Classifier on the same loaded file, with a request and buffers of its own.
  Classifier share() const;

  /// The `top_k` most probable classes, best first; of equal ones the lower index comes first.
  /// The result lasts until the next call. Throws InputError for an unusable view, for `top_k` 0,
  /// if the bundle gives feature maps, and if the network answers with something else than numbers.
  const std::vector<Prediction>& classify(const ImageView& image, std::size_t top_k = 5);

  /// The same for several images of any sizes, in as many inferences as the file's batch needs.
  const std::vector<std::vector<Prediction>>& classify(const std::vector<ImageView>& images,
                                                       std::size_t top_k = 5);

  /// What the network answers, as it is: the scores, or the feature maps of a bundle of
  /// --output features, those of strides 4, 8, 16 and 32. The result lasts until the next call.
  const std::vector<Output>& outputs(const ImageView& image);

  /// The same for several images of any sizes, of which there must be one.
  const std::vector<Output>& outputs(const std::vector<ImageView>& images);

  /// Path within the bundle of the file that runs.
  const std::string& artefact() const;
  const std::vector<std::string>& labels() const;
  /// For read_image: what is black and white in images that do not say so, where the bundle was
  /// exported with such a range.
  const std::optional<ImageRange>& image_range() const;

 private:
  struct State;
  explicit Classifier(std::unique_ptr<State> state);
  State& state() const;
  std::unique_ptr<State> state_;
};

}  // namespace cmt
