#include <algorithm>
#include <array>
#include <cmath>
#include <cmt/classifier.hpp>
#include <numeric>
#include <utility>

#include "backend.hpp"
#include "bundle.hpp"
#include "golden.hpp"
#include "preprocessing.hpp"
#include "translate.hpp"

namespace cmt {
namespace {

/// What Classifiers on one loaded file share.
struct Loaded {
  std::string folder;
  Manifest manifest;
  std::string artefact;
  std::shared_ptr<const Model> model;
};

/// Where a precision stands among those that are taken by default, the smallest first.
std::ptrdiff_t rank(const Artefact& artefact) {
  constexpr std::array<std::string_view, 3> kSmallestFirst{"int8", "fp16", "fp32"};
  return std::find(kSmallestFirst.begin(), kSmallestFirst.end(), artefact.precision) -
         kSmallestFirst.begin();
}

/// The file that Options::artefact means.
const Artefact& choose(const Bundle& bundle, const std::string& wanted, const std::string& device) {
  const Artefact* best = nullptr;
  std::string known;
  std::string reason;
  for (const Artefact& artefact : bundle.manifest().artefacts) {
    const bool meant = wanted.empty() || wanted == artefact.precision || wanted == artefact.name();
    if (const auto missing = not_runnable(bundle, artefact, device)) {
      if (meant) reason = artefact.file.path + ": " + *missing;
      continue;
    }
    known += (known.empty() ? "" : ", ") + artefact.name();
    if (meant && (best == nullptr || rank(artefact) < rank(*best))) best = &artefact;
  }
  if (best != nullptr) return *best;
  if (reason.empty()) reason = "the bundle has no '" + wanted + "'";
  throw InputError(reason + (known.empty() ? "" : "; this build can run " + known));
}

std::shared_ptr<const Loaded> load(const std::filesystem::path& folder, const Options& options) {
  if (options.threads && (*options.threads < 1 || *options.threads > kMostThreads)) {
    throw InputError("threads must be from 1 to " + std::to_string(kMostThreads) + ", not " +
                     std::to_string(*options.threads));
  }
  const Bundle bundle(folder, options.trust);
  require_device(bundle, options.device);
  const Artefact& artefact = choose(bundle, options.artefact, options.device);
  auto model = load_model(bundle, artefact, options.threads.value_or(0), options.device);
  if (!options.device.empty()) {
    const Check check = check_golden(bundle, artefact, options.device, [&] { return model; });
    if (check.passed == false) {
      throw InputError("device " + options.device +
                       " does not compute what the bundle's files do: " + artefact.file.path + " " +
                       check.detail + "; take another one");
    }
  }
  return std::make_shared<Loaded>(
      Loaded{folder.string(), bundle.manifest(), artefact.file.path, std::move(model)});
}

}  // namespace

struct Classifier::State {
  std::shared_ptr<const Loaded> loaded;
  Preprocessor preprocessor;
  std::unique_ptr<Session> session;
  std::vector<std::size_t> order;          ///< class indices, the best first
  std::vector<ImageView> one;              ///< a batch of one image
  std::vector<std::vector<float>> values;  ///< of each output, of all images
  std::vector<Output> outputs;
  std::vector<std::vector<Prediction>> results;

  explicit State(std::shared_ptr<const Loaded> from)
      : loaded(std::move(from)),
        preprocessor(loaded->manifest.preprocessing),
        session(loaded->model->make_session()),
        one(1),
        values(session->outputs().size()),
        outputs(session->outputs()) {
    if (outputs.size() > 1) return;
    const std::vector<std::size_t>& shape = outputs.front().shape;
    if (shape.size() != 2 || shape[1] == 0) {
      throw InputError(loaded->artefact + " does not answer with a number for each class: export " +
                       "the bundle again");
    }
    order.resize(shape[1]);
  }

  void classify(const std::vector<ImageView>& images, std::size_t top_k) {
    if (top_k == 0) throw InputError("top must be at least 1, not 0");
    if (outputs.size() != 1) {
      throw InputError(loaded->folder +
                       " gives feature maps, no classes: call outputs, or export " +
                       "it anew with --output logits");
    }
    translated(loaded->artefact, [&] {
      results.resize(images.size());
      if (!images.empty()) answer(images);
      const float* logits = values.front().data();
      for (auto& result : results) {
        rank(logits, top_k, result);
        logits += order.size();
      }
    });
  }

  const std::vector<Output>& answers(const std::vector<ImageView>& images) {
    if (images.empty()) throw InputError("there is no image: give at least one");
    translated(loaded->artefact, [&] { answer(images); });
    return outputs;
  }

 private:
  void rank(const float* logits, std::size_t top_k, std::vector<Prediction>& result) {
    const std::size_t classes = order.size();
    const std::size_t count = std::min(top_k, classes);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count),
                      order.end(), [logits](std::size_t a, std::size_t b) {
                        return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
                      });
    const double highest = *std::max_element(logits, logits + classes);
    double sum = 0;
    for (std::size_t i = 0; i < classes; ++i) sum += std::exp(logits[i] - highest);
    result.resize(count);
    const std::vector<std::string>& labels = loaded->manifest.labels;
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t index = order[i];
      const double share = std::exp(logits[index] - highest) / sum;
      result[i] = {index, labels.empty() ? std::string_view() : std::string_view(labels[index]),
                   static_cast<float>(share), logits[index]};
    }
  }

  void answer(const std::vector<ImageView>& images) {
    const std::size_t batch = loaded->manifest.batch;
    for (std::size_t begin = 0; begin < images.size(); begin += batch) {
      const std::size_t count = std::min(batch, images.size() - begin);
      for (std::size_t i = 0; i < batch; ++i) {
        // A batch that is not full starts over with its first images.
        const ImageView& image = images[begin + i % count];
        preprocessor.feed(preprocessor.resize(image), session->input(), i);
      }
      session->infer();
      for (std::size_t o = 0; o < outputs.size(); ++o) keep(o, begin, count, images.size());
    }
  }

  /// Takes over what an output has of the `count` images from `begin` on, of `all`.
  void keep(std::size_t output, std::size_t begin, std::size_t count, std::size_t all) {
    const Output& from = session->outputs()[output];
    const std::size_t size = std::accumulate(from.shape.begin() + 1, from.shape.end(),
                                             std::size_t{1}, std::multiplies<>());
    if (!std::all_of(from.values, from.values + count * size,
                     [](float x) { return std::isfinite(x); })) {
      throw InputError(loaded->artefact +
                       " answered with NaN or infinity: export the bundle again");
    }
    values[output].resize(all * size);
    float* place = values[output].data();
    std::copy(from.values, from.values + count * size, place + begin * size);
    outputs[output].shape.front() = all;
    outputs[output].values = place;
  }
};

Classifier::Classifier(const std::filesystem::path& bundle, const Options& options)
    : Classifier(translated(bundle.string(),
                            [&] { return std::make_unique<State>(load(bundle, options)); })) {}

Classifier::Classifier(std::unique_ptr<State> state) : state_(std::move(state)) {}
Classifier::Classifier(Classifier&& other) noexcept = default;
Classifier& Classifier::operator=(Classifier&& other) noexcept = default;
Classifier::~Classifier() = default;

Classifier::State& Classifier::state() const {
  if (state_ == nullptr) throw InputError("this Classifier was moved from: make another");
  return *state_;
}

Classifier Classifier::share() const {
  const std::shared_ptr<const Loaded>& loaded = state().loaded;
  return Classifier(translated(loaded->artefact, [&] { return std::make_unique<State>(loaded); }));
}

const std::vector<Prediction>& Classifier::classify(const ImageView& image, std::size_t top_k) {
  state().one.front() = image;
  state().classify(state().one, top_k);
  return state().results.front();
}

const std::vector<std::vector<Prediction>>& Classifier::classify(
    const std::vector<ImageView>& images, std::size_t top_k) {
  state().classify(images, top_k);
  return state().results;
}

const std::vector<Output>& Classifier::outputs(const ImageView& image) {
  state().one.front() = image;
  return state().answers(state().one);
}

const std::vector<Output>& Classifier::outputs(const std::vector<ImageView>& images) {
  return state().answers(images);
}

const std::string& Classifier::artefact() const { return state().loaded->artefact; }

const std::vector<std::string>& Classifier::labels() const {
  return state().loaded->manifest.labels;
}

const std::optional<ImageRange>& Classifier::image_range() const {
  return state().loaded->manifest.image_range;
}

}  // namespace cmt
