// Names of concepts that are known by number only: asked for once each.

import { get } from "./api.js";

/** `model()` names the model; `onnew()` is called after a name came in. */
export function namesOf(model, onnew) {
  const known = new Map();
  const wanted = new Set();

  return {
    of: (id) => known.get(id) ?? null,
    learn: (id, name) => known.set(id, name),
    forget: () => {
      known.clear();
      wanted.clear();
    },
    async want(id) {
      if (known.has(id) || wanted.has(id)) return;
      wanted.add(id);
      const of = model();
      try {
        const { concepts } = await get("/api/concepts", {
          model: of,
          q: `c${id}`,
          sort: "number",
          offset: 0,
          limit: 1,
        });
        if (of !== model() || concepts[0]?.concept !== id) return;
        known.set(id, concepts[0].name);
        onnew();
      } catch {
        // its number is enough to go on with; the next view asks again
        wanted.delete(id);
      }
    },
  };
}
