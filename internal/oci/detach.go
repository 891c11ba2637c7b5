package oci

import (
	"bytes"
	"errors"
	"strings"
)

// DetachKeys are what a user types to leave an attached container running.
type DetachKeys []byte

// ErrNoKeys is that a word is no list of keys.
var ErrNoKeys = errors.New("keys are wanted, as ctrl-p,ctrl-q")

// ParseDetachKeys reads keys as Docker writes them: a list with commas of single
// characters and ctrl-X, X being one of a to z and @ [ \ ] ^ _. The empty string
// is ctrl-p,ctrl-q.
func ParseDetachKeys(s string) (DetachKeys, error) {
	if s == "" {
		s = "ctrl-p,ctrl-q"
	}
	var out DetachKeys
	for word := range strings.SplitSeq(s, ",") {
		key, ctrl := strings.CutPrefix(word, "ctrl-")
		switch {
		case len(key) != 1 || key[0] <= ' ' || key[0] > '~':
			return nil, ErrNoKeys
		case !ctrl:
			out = append(out, key[0])
		case key[0] >= 'a' && key[0] <= 'z':
			out = append(out, key[0]-'a'+1)
		case key[0] >= '@' && key[0] <= '_' && (key[0] < 'A' || key[0] > 'Z'):
			out = append(out, key[0]-'@')
		default:
			return nil, errors.New("ctrl- goes with a letter, @, [, \\, ], ^ or _")
		}
	}
	return out, nil
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
