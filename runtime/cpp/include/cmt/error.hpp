#pragma once

#include <stdexcept>

namespace cmt {

/// A bundle, an image or an argument is unusable; the message names it and says what to do.
class InputError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace cmt
