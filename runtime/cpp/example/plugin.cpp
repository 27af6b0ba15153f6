#include <cmt/classifier.hpp>

/// The most probable class of an image file by a file of a bundle, such as "int8"; -1 where there
/// is none.
extern "C" __attribute__((visibility("default"))) int best_class(const char* bundle,
                                                                 const char* artefact,
                                                                 const char* image) noexcept {
  try {
    cmt::Classifier classifier(bundle, {artefact});
    const cmt::Image decoded = cmt::read_image(image, classifier.image_range());
    return static_cast<int>(classifier.classify(decoded.view()).front().index);
  } catch (const cmt::Error&) {
    return -1;
  }
}
