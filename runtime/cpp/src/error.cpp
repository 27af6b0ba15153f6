#include <cmt/error.hpp>

#include "text.hpp"

namespace cmt {

// Messages quote names and contents of others' files.
Error::Error(const std::string& message) : std::runtime_error(printable(message)) {}

}  // namespace cmt
