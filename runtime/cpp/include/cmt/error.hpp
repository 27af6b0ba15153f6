#pragma once

#include <stdexcept>
#include <string>

namespace cmt {

/// All that this library throws. The message is one line of visible characters, fit for a terminal.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message);
};

/// A bundle, an image or an argument is unusable; the message names it and says what to do.
class InputError : public Error {
 public:
  using Error::Error;
};

/// The machine failed, such as for lack of memory; trying again may help.
class MachineError : public Error {
 public:
  using Error::Error;
};

}  // namespace cmt
