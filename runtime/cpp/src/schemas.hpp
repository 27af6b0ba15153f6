#pragma once

namespace cmt {

/// The text of manifest.schema.json, the one declaration of what a manifest holds.
extern const char* const kManifestSchema;

/// What manifest.schema.json does not ask for yet.
extern const char* const kStricterSchema;

}  // namespace cmt
