#pragma once

#include <cmt/version.h>

#include <stdexcept>
#include <string>

namespace cmt {

/// All that this library throws. The message is one line of visible characters, fit for a terminal.
class CMT_API Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message);
};

/// A bundle, an image or an argument is unusable; the message names it and says what to do.
class CMT_API InputError : public Error {
 public:
  using Error::Error;
};

/// The machine failed, such as for lack of memory; trying again may help.
class CMT_API MachineError : public Error {
 public:
  using Error::Error;
};

}  // namespace cmt
