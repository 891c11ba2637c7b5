package nft

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"berth/internal/foreign"
)

var families = map[nftables.TableFamily]string{
	nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet", nftables.TableFamilyBridge: "bridge",
}

// Foreign returns the tables of other tools that see forwarded packets, those
// of iptables-legacy among them.
func (c *Conn) Foreign() ([]foreign.Table, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.ready(); err != nil {
		return nil, err
	}
	out, err := c.foreign()
	if err != nil {
		c.giveUp()
		return nil, explain("read other tools' firewalls", err)
	}
	old, err := c.legacy()
	return append(out, old...), err
}

func (c *Conn) foreign() ([]foreign.Table, error) {
	all, err := c.nft.ListChains()
	if err != nil {
		return nil, err
	}
	type id struct {
		family nftables.TableFamily
		name   string
	}
	of := map[id][]*nftables.Chain{}
	var order []id
	forwards := map[id]bool{}
	for _, ch := range all {
		t := id{ch.Table.Family, ch.Table.Name}
		if _, known := families[t.family]; !known || t == (id{table.Family, table.Name}) {
			continue
		}
		if of[t] == nil {
			order = append(order, t)
		}
		of[t] = append(of[t], ch)
		forwards[t] = forwards[t] || ch.Hooknum != nil && *ch.Hooknum == *nftables.ChainHookForward && ch.Type == nftables.ChainTypeFilter
	}
	var out []foreign.Table
	for _, t := range order {
		if !forwards[t] {
			continue
		}
		ft := foreign.Table{Family: families[t.family], Name: t.name}
		for _, ch := range of[t] {
			fc, err := c.chain(ch)
			if err != nil {
				return nil, err
			}
			ft.Chains = append(ft.Chains, fc)
		}
		out = append(out, ft)
	}
	return out, nil
}

func (c *Conn) chain(ch *nftables.Chain) (foreign.Chain, error) {
	fc := foreign.Chain{Name: ch.Name}
	if ch.Hooknum != nil && ch.Type == nftables.ChainTypeFilter {
		switch *ch.Hooknum {
		case *nftables.ChainHookForward:
			fc.Hook = foreign.Forward
		case *nftables.ChainHookInput:
			fc.Hook = foreign.Input
		}
	}
	fc.Drop = ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop
	rules, err := c.nft.GetRules(ch.Table, ch)
	if err != nil {
		return fc, fmt.Errorf("chain %s: %w", ch.Name, err)
	}
	fc.Number = len(rules)
	for _, r := range rules {
		fc.Rules = append(fc.Rules, understand(r.Exprs))
	}
	return fc, nil
}

// understand reads a rule's expressions as far as they are about links,
// conntrack states and verdicts; anything else makes it opaque.
func understand(exprs []expr.Any) foreign.Rule {
	var r foreign.Rule
	loaded := "" // what register 1 holds
	var mask uint32
	for _, e := range exprs {
		switch e := e.(type) {
		case *expr.Meta:
			switch e.Key {
			case expr.MetaKeyIIFNAME:
				loaded = "iif"
			case expr.MetaKeyOIFNAME:
				loaded = "oif"
			default:
				loaded = "other"
			}
		case *expr.Ct:
			switch e.Key {
			case expr.CtKeySTATE:
				loaded = "state"
			case expr.CtKeySTATUS:
				loaded = "status"
			default:
				loaded = "other"
			}
		case *expr.Bitwise:
			if len(e.Mask) == 4 {
				mask = binary.NativeEndian.Uint32(e.Mask)
			}
		case *expr.Cmp:
			compareInto(&r, loaded, mask, e)
		case *expr.Counter, *expr.Log:
		case *expr.Verdict:
			r.Verdict, r.To = verdictOf(e), e.Chain
		case *expr.Reject:
			r.Verdict = foreign.Drop
		case *expr.Target:
			r.Opaque = true
			r.Verdict = foreign.Next
			if e.Name == "REJECT" {
				r.Verdict, r.Opaque = foreign.Drop, false
			}
		case *expr.Match:
			r.Opaque = true
		default:
			r.Opaque = true
		}
	}
	return r
}

func compareInto(r *foreign.Rule, loaded string, mask uint32, e *expr.Cmp) {
	switch loaded {
	case "iif", "oif":
		n := &foreign.Name{Text: string(bytes.TrimRight(e.Data, "\x00")), Not: e.Op == expr.CmpOpNeq}
		// A name that ends without its zero is a prefix.
		n.Prefix = !bytes.HasSuffix(e.Data, []byte{0}) && len(e.Data) < 16
		n.Text = strings.TrimSuffix(n.Text, "+")
		if loaded == "iif" {
			r.IIF = n
		} else {
			r.OIF = n
		}
	case "state":
		if e.Op == expr.CmpOpNeq && mask != 0 {
			r.States = mask
		} else {
			r.Opaque = true
		}
	case "status":
		if e.Op == expr.CmpOpNeq && mask == statusDNAT {
			r.DNAT = true
		} else {
			r.Opaque = true
		}
	default:
		r.Opaque = true
	}
}

func verdictOf(v *expr.Verdict) foreign.Verdict {
	switch v.Kind {
	case expr.VerdictAccept:
		return foreign.Accept
	case expr.VerdictDrop:
		return foreign.Drop
	case expr.VerdictReturn:
		return foreign.Return
	case expr.VerdictJump:
		return foreign.Jump
	case expr.VerdictGoto:
		return foreign.Goto
	}
	return foreign.Next
}
