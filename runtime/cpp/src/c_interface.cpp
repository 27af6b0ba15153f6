#include <cmt/cmt.h>

#include <array>
#include <cmt/classifier.hpp>
#include <cmt/error.hpp>
#include <new>
#include <string>
#include <string_view>

/// What the name in cmt.h stands for.
struct cmt_classifier {
  cmt::Classifier of;
};

namespace {

/// A line of text that a thread keeps without allocating; the end of a long one is lost.
class Line {
 public:
  void keep(std::string_view text) noexcept {
    const std::size_t size = text.copy(text_.data(), text_.size() - 1);
    text_[size] = '\0';
  }
  const char* text() const noexcept { return text_.data(); }

 private:
  std::array<char, 2048> text_{};
};

// NOLINTBEGIN(cppcoreguidelines-avoid-non-const-global-variables)
thread_local Line last_error;
thread_local Line last_warning;
// NOLINTEND(cppcoreguidelines-avoid-non-const-global-variables)

/// Runs a function's body; what it throws becomes a status and a line.
template <typename Body>
cmt_status guarded(const Body& body) noexcept {
  const auto fail = [](const char* why, cmt_status status) {
    last_error.keep(why);
    return status;
  };
  last_error.keep("");
  last_warning.keep("");
  try {
    body();
    return CMT_OK;
  } catch (const cmt::InputError& error) {
    return fail(error.what(), CMT_INPUT_ERROR);
  } catch (const cmt::Error& error) {
    return fail(error.what(), CMT_MACHINE_ERROR);
  } catch (const std::bad_alloc&) {
    return fail("out of memory: free some", CMT_MACHINE_ERROR);
  } catch (...) {
    return fail("the runtime failed without a reason", CMT_MACHINE_ERROR);
  }
}

template <typename T>
T* required(T* pointer, const char* name) {
  if (pointer == nullptr) throw cmt::InputError(std::string(name) + " is NULL");
  return pointer;
}

std::string or_empty(const char* text) { return text == nullptr ? "" : text; }

cmt::Options options_of(const cmt_options& given) {
  cmt::Options options{or_empty(given.file)};
  if (given.threads != 0) options.threads = given.threads;
  options.trust = {or_empty(given.trust_key), given.unsigned_engines != 0};
  options.device = or_empty(given.device);
  return options;
}

cmt::ImageView view_of(const cmt_image& image) {
  if (image.format < CMT_RGB || image.format > CMT_NV12) {
    throw cmt::InputError("there is no pixel format " + std::to_string(image.format));
  }
  return {image.pixels,
          image.width,
          image.height,
          image.stride,
          static_cast<cmt::PixelFormat>(image.format),
          image.chroma};
}

/// Where the classes of an image go.
struct Place {
  std::size_t top;
  cmt_prediction* best;
  std::size_t* found;
};

void classify(cmt_classifier* classifier, const cmt::ImageView& image, const Place& place) {
  required(place.best, "best");
  required(place.found, "found");
  const auto& predictions = required(classifier, "the classifier")->of.classify(image, place.top);
  *place.found = predictions.size();
  for (std::size_t i = 0; i < predictions.size(); ++i) {
    const cmt::Prediction& one = predictions[i];
    // Labels are whole texts with their NUL.
    const char* label = one.label.empty() ? "" : one.label.data();
    place.best[i] = {one.index, label, one.probability, one.score};
  }
}

/// Of an image that `decode` makes by the bundle's range.
template <typename Decode>
cmt_status classify_decoded(cmt_classifier* classifier, const Decode& decode, const Place& place) {
  return guarded([&] {
    const cmt::Image image = decode(required(classifier, "the classifier")->of.image_range());
    classify(classifier, image.view(), place);
    last_warning.keep(cmt::doubts(image));
  });
}

}  // namespace

const char* cmt_version(void) { return CMT_VERSION; }

cmt_status cmt_open(const char* bundle, const cmt_options* options, cmt_classifier** out) {
  return guarded([&] {
    required(out, "out");
    const cmt::Options taken = options == nullptr ? cmt::Options{} : options_of(*options);
    *out = new cmt_classifier{cmt::Classifier(required(bundle, "the bundle"), taken)};
  });
}

cmt_status cmt_share(const cmt_classifier* classifier, cmt_classifier** out) {
  return guarded([&] {
    required(out, "out");
    *out = new cmt_classifier{required(classifier, "the classifier")->of.share()};
  });
}

void cmt_close(cmt_classifier* classifier) { delete classifier; }

cmt_status cmt_classify_file(cmt_classifier* classifier, const char* path, size_t top,
                             cmt_prediction* best, size_t* found) {
  const auto read = [&](const auto& range) {
    return cmt::read_image(required(path, "the path"), range);
  };
  return classify_decoded(classifier, read, {top, best, found});
}

cmt_status cmt_classify_bytes(cmt_classifier* classifier, const uint8_t* data, size_t size,
                              size_t top, cmt_prediction* best, size_t* found) {
  const auto decode = [&](const auto& range) {
    return cmt::decode_image(required(data, "the data"), size, range);
  };
  return classify_decoded(classifier, decode, {top, best, found});
}

cmt_status cmt_classify_pixels(cmt_classifier* classifier, const cmt_image* image, size_t top,
                               cmt_prediction* best, size_t* found) {
  return guarded([&] {
    classify(classifier, view_of(*required(image, "the image")), {top, best, found});
  });
}

const char* cmt_artefact(const cmt_classifier* classifier) {
  return classifier == nullptr ? nullptr : classifier->of.artefact().c_str();
}

size_t cmt_label_count(const cmt_classifier* classifier) {
  return classifier == nullptr ? 0 : classifier->of.labels().size();
}

const char* cmt_label(const cmt_classifier* classifier, size_t index) {
  return index < cmt_label_count(classifier) ? classifier->of.labels()[index].c_str() : nullptr;
}

const char* cmt_last_error(void) { return last_error.text(); }

const char* cmt_last_warning(void) { return last_warning.text(); }
