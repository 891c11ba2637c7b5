package nft

import (
	"fmt"
	"reflect"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
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
	t, err := c.look()
	if err != nil {
		c.giveUp()
		return t, explain("read the firewall's rules", err)
	}
	return t, nil
}

func (c *Conn) look() (t Table, err error) {
	all, err := c.nft.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return t, err
	}
	have := map[string]*nftables.Chain{}
	for _, ch := range all {
		if ch.Table.Name == table.Name {
			have[ch.Name] = ch
		}
	}
	absent, err := c.absent()
	if err != nil || absent {
		return t, err
	}
	t.Present = true
	named, err := c.nft.GetSets(table)
	if err != nil {
		return t, err
	}
	t.Exact = sameSets(named)
	want := chains()
	t.Exact = t.Exact && len(have) == len(want)
	for i := range want {
		ch, ok := have[want[i].Name]
		if !ok {
			t.Exact = false
			continue
		}
		rules, err := c.nft.GetRules(table, ch)
		if err != nil {
			return t, err
		}
		t.Exact = t.Exact && sameChain(&want[i].Chain, ch) && sameRules(want[i].rules, rules)
		for _, r := range rules {
			if id, ok := storeOf(r); ok && ch.Name == "refuse" {
				t.Store = id
			}
		}
	}
	return t, nil
}

func sameSets(have []*nftables.Set) bool {
	byName := map[string]*nftables.Set{}
	for _, s := range have {
		if !s.Anonymous {
			byName[s.Name] = s
		}
	}
	if len(byName) != len(sets) {
		return false
	}
	for _, w := range sets {
		h, ok := byName[w.Name]
		if !ok || h.IsMap != w.IsMap || h.Interval != w.Interval || h.KeyType.Bytes != w.KeyType.Bytes {
			return false
		}
	}
	return true
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

func sameRules(want [][]expr.Any, have []*nftables.Rule) bool {
	if len(want) != len(have) {
		return false
	}
	for i, w := range want {
		if len(w) != len(have[i].Exprs) {
			return false
		}
		for j := range w {
			if !reflect.DeepEqual(plain(w[j]), plain(have[i].Exprs[j])) {
				return false
			}
		}
	}
	return true
}

// plain takes out of an expression what differs between what is written and
// what is read back.
func plain(e expr.Any) any {
	switch e := e.(type) {
	case *expr.Counter:
		return expr.Counter{}
	case *expr.Lookup:
		l := *e
		l.SetID = 0
		if len(l.SetName) > 5 && l.SetName[:5] == "__set" {
			l.SetName = "__set"
		}
		return l
	case *expr.Payload:
		p := *e
		p.OperationType = 0
		return p
	case *expr.Ct:
		return fmt.Sprint(e.Key, e.Register)
	}
	return reflect.ValueOf(e).Elem().Interface()
}
