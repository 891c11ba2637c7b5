package oci

import (
	"bytes"
	"fmt"
	"strings"

	"berth"
)

// DetachKeys are what a user types to leave an attached container running.
type DetachKeys []byte

// ParseDetachKeys reads keys as Docker writes them: a list with commas of single
// characters and ctrl-X, X being one of a to z and @ [ \ ] ^ _. The empty string
// is ctrl-p,ctrl-q.
func ParseDetachKeys(s string) (DetachKeys, error) {
	if s == "" {
		s = "ctrl-p,ctrl-q"
	}
	var keys DetachKeys
	for key := range strings.SplitSeq(s, ",") {
		name, ctrl := strings.CutPrefix(strings.ToLower(key), "ctrl-")
		switch {
		case len(key) == 1:
			keys = append(keys, key[0])
		case ctrl && len(name) == 1 && strings.Contains(`@abcdefghijklmnopqrstuvwxyz[\]^_`, name):
			keys = append(keys, name[0]&0x1f)
		default:
			return nil, fmt.Errorf("detach keys %q: %q is neither a character nor ctrl- and one of a-z @ [ \\ ] ^ _: %w", s, key, berth.ErrInvalid)
		}
	}
	return keys, nil
}

// A detacher takes the detach keys out of what is typed.
type detacher struct {
	keys DetachKeys
	held []byte // a start of keys that may become all of them
}

// pass returns what of b is for the container. What begins like the keys is
// held back until the next byte shows whether it was them.
func (d *detacher) pass(b []byte) (out []byte, detached bool) {
	if len(d.keys) == 0 {
		return b, false
	}
	for _, c := range b {
		d.held = append(d.held, c)
		for !bytes.HasPrefix(d.keys, d.held) {
			out, d.held = append(out, d.held[0]), d.held[1:]
		}
		if len(d.held) == len(d.keys) {
			return out, true
		}
	}
	return out, false
}
