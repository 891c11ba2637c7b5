package berth

import "time"

// A Sandbox is a network namespace that Berth connects. Its identity is the
// namespace's cookie (SO_NETNS_COOKIE, Linux 5.14) within one boot: a name, a
// path and a pid of one namespace are one Sandbox.
type Sandbox struct {
	ID      string    `json:"id"` // 64 hex digits, a function of boot id and cookie
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	// Path leads to the namespace: /run/netns/NAME, /proc/PID/ns/net or the
	// user's own. It is only believed while the cookie behind it is Cookie.
	Path   string `json:"path"`
	Cookie uint64 `json:"cookie"`
	// Owned reports whether Berth made the namespace; a foreign one is
	// forgotten after its last disconnect and never deleted.
	Owned  bool              `json:"owned"`
	Labels map[string]string `json:"labels,omitempty"`
}
