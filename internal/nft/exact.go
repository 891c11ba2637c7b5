package nft

import (
	"encoding/binary"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// A Table is what is known of table inet berth without its elements.
type Table struct {
	Present bool
	// Exact reports whether its chains, rules and sets are those of
	// ruleset.nft, no more and no less.
	Exact bool
	Store string // id of the run store that it belongs to
}

// Table looks at the table's sets, chains and rules.
func (c *Conn) Table() (Table, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.ready(); err != nil {
		return Table{}, err
	}
	var t Table
	err := c.steady(func() (err error) {
		t, err = c.look()
		return err
	})
	if err != nil {
		c.giveUp()
		return Table{}, explain("read the firewall's rules", err)
	}
	return t, nil
}

func (c *Conn) look() (t Table, err error) {
	flags, ok, err := c.tableFlags(table)
	if err != nil || !ok {
		return t, err
	}
	t.Present = true
	chainsThere, err := c.ownChains()
	if err != nil {
		return t, err
	}
	setsThere, err := c.kernelSets(table)
	if err != nil {
		return t, err
	}
	rules, err := c.kernelRules(table)
	if err != nil {
		return t, err
	}
	for _, r := range rules["refuse"] {
		if id, ok := storeOf(r.userData); ok {
			t.Store = id
		}
	}
	// A dormant table is whole and does nothing.
	t.Exact = flags&unix.NFT_TABLE_F_DORMANT == 0 && sameSets(setsThere)
	want := chains()
	t.Exact = t.Exact && len(chainsThere) == len(want)
	for i := range want {
		if !t.Exact {
			return t, nil
		}
		ch, ok := chainsThere[want[i].Name]
		t.Exact = ok && sameChain(&want[i].Chain, ch)
		if t.Exact {
			t.Exact, err = c.sameRules(want[i].rules, rules[ch.Name])
		}
		if err != nil {
			return t, err
		}
	}
	return t, nil
}

func (c *Conn) ownChains() (map[string]*nftables.Chain, error) {
	all, err := c.nft.ListChainsOfTableFamily(table.Family)
	out := map[string]*nftables.Chain{}
	for _, ch := range all {
		if ch.Table.Name == table.Name {
			out[ch.Name] = ch
		}
	}
	return out, err
}

func sameSets(have map[string]kernelSet) bool {
	named := maps.Clone(have)
	maps.DeleteFunc(named, func(_ string, s kernelSet) bool { return s.flags&unix.NFT_SET_ANONYMOUS != 0 })
	if len(named) != len(sets) {
		return false
	}
	for _, w := range sets {
		h, ok := named[w.Name]
		if !ok || !sameSet(w, h) {
			return false
		}
	}
	return true
}

func sameSet(w *nftables.Set, h kernelSet) bool {
	flags := uint32(0)
	for bit, on := range map[uint32]bool{unix.NFT_SET_INTERVAL: w.Interval, unix.NFT_SET_MAP: w.IsMap, flagConcat: w.Concatenation} {
		if on {
			flags |= bit
		}
	}
	if !w.Concatenation {
		h.flags &^= flagConcat // nft sets it on every concatenation
	}
	if h.flags != flags || h.size != 0 || h.keyType != w.KeyType.GetNFTMagic() || h.keyLen != w.KeyType.Bytes {
		return false
	}
	if w.IsMap && (h.dataType != w.DataType.GetNFTMagic() || h.dataLen != w.DataType.Bytes) {
		return false
	}
	return w.Counter && slices.Equal(h.exprs, []string{"counter"}) || !w.Counter && len(h.exprs) == 0
}

func sameChain(want, have *nftables.Chain) bool {
	return want.Type == have.Type && same(want.Hooknum, have.Hooknum) && same(want.Priority, have.Priority) && same(want.Policy, have.Policy)
}

func same[T comparable](a, b *T) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

func (c *Conn) sameRules(want [][]expr.Any, have []kernelRule) (bool, error) {
	if len(want) != len(have) {
		return false, nil
	}
	for i, w := range want {
		if len(w) != len(have[i].exprs) {
			return false, nil
		}
		for j := range w {
			h := have[i].exprs[j]
			if !reflect.DeepEqual(plain(w[j]), plain(h)) {
				return false, nil
			}
			if l, ok := w[j].(*expr.Lookup); ok && l.SetID != 0 {
				if ok, err := c.sameAnonymous(l.SetID, h.(*expr.Lookup).SetName); !ok {
					return false, err
				}
			}
		}
	}
	return true, nil
}

// sameAnonymous reports whether an anonymous set holds the types of ours.
func (c *Conn) sameAnonymous(id uint32, name string) (bool, error) {
	all, err := c.elements(&nftables.Set{Table: table, Name: name})
	var have []uint32
	for _, e := range all {
		if len(e.Key) != 4 {
			return false, err
		}
		have = append(have, binary.NativeEndian.Uint32(e.Key))
	}
	slices.Sort(have)
	want := slices.Sorted(slices.Values(anonymousTypes[id]))
	return slices.Equal(have, want), err
}

// plain takes out of an expression what differs between what is written and
// what is read back.
func plain(e any) any {
	switch e := e.(type) {
	case *expr.Counter:
		return expr.Counter{}
	case *expr.Lookup:
		l := *e
		l.SetID = 0
		if strings.HasPrefix(l.SetName, "__set") {
			l.SetName = "__set"
		}
		return l
	case *expr.Payload:
		p := *e
		p.OperationType = 0
		return p
	case expr.Any:
		return reflect.ValueOf(e).Elem().Interface()
	}
	return e
}

// storeOf reads the store's id back from the comment of a rule.
func storeOf(userData []byte) (string, bool) {
	c, ok := userdata.GetString(userData, userdata.TypeComment)
	if !ok {
		return "", false
	}
	return strings.CutPrefix(c, storeComment)
}
