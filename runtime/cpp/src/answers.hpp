#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "npy.hpp"

namespace cmt {

/// Torch's answers to the images that a bundle was judged on, as `Answers` of
/// bundle/torch_answers.py.
class Answers {
 public:
  /// Of a bundle that may have none. Throws InputError where the arrays do not belong together.
  explicit Answers(const Bundle& bundle);

  /// An image's row by the hexadecimal sha256 of its bytes; nothing where torch did not answer it.
  std::optional<std::size_t> row(const std::string& sha256) const;

  /// Classes of a row, the most probable first, and their logits; `kept` of them.
  const std::int32_t* classes(std::size_t row) const {
    return classes_.values.data() + row * kept_;
  }
  const float* logits(std::size_t row) const { return logits_.values.data() + row * kept_; }
  std::size_t kept() const { return kept_; }
  std::int32_t largest_class() const { return largest_class_; }

  /// The class that a folder of images stands for: as at the export, else by its label. Throws
  /// InputError for a folder of no class, or of several.
  std::size_t class_of(const std::string& folder) const;

 private:
  std::map<std::string, std::size_t> rows_;
  std::map<std::string, std::size_t> folders_;
  std::vector<std::string> labels_;
  Array<std::int32_t> classes_;
  Array<float> logits_;
  std::size_t kept_ = 0;
  std::int32_t largest_class_ = -1;
};

}  // namespace cmt
