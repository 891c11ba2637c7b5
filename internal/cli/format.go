package cli

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"text/template"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// functions are those of Docker's templates.
var functions = template.FuncMap{
	"json": jsonText, "join": strings.Join, "lower": strings.ToLower, "upper": strings.ToUpper, "split": strings.Split,
	"title": title, "pad": pad, "truncate": truncate, "println": fmt.Sprintln,
}

// headFunctions stand for functions where a template makes the headings of a
// table: a heading is not shortened with the column below it.
var headFunctions = template.FuncMap{
	"json": same, "lower": same, "upper": same, "title": same, "pad": pad,
	"join":     func(s, _ string) string { return s },
	"split":    func(s, _ string) []string { return []string{s} },
	"truncate": func(s string, _ int) string { return s },
}

func same(s string) string { return s }

func jsonText(v any) (string, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return strings.TrimSuffix(b.String(), "\n"), err
}

func title(s string) string {
	_, n := utf8.DecodeRuneInString(s)
	return strings.ToUpper(s[:n]) + s[n:]
}

func pad(s string, before, after int) string {
	if s == "" {
		return s
	}
	return strings.Repeat(" ", max(before, 0)) + s + strings.Repeat(" ", max(after, 0))
}

func truncate(s string, n int) string {
	if r := []rune(s); 0 <= n && n < len(r) {
		return string(r[:n])
	}
	return s
}

// A list is how rows are to be shown, as the flags say.
type list struct {
	format  string
	quiet   bool
	noTrunc bool
	filters []string
}

// flags adds the flags of a command that lists. ids is what --quiet shows.
func (l *list) flags(cmd *cobra.Command, ids, filters string) {
	f := cmd.Flags()
	l.formatFlag(cmd)
	f.BoolVarP(&l.quiet, "quiet", "q", false, "only "+ids)
	f.BoolVar(&l.noTrunc, "no-trunc", false, "whole ids, and all of a long list")
	f.StringArrayVarP(&l.filters, "filter", "f", nil, "only what matches `KEY=VALUE`, with a key of: "+filters)
}

func (l *list) formatFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&l.format, "format", "", "table, json (an object a line), 'table TEMPLATE' or a Go `template`, with Docker's names of fields")
}

// A layout is how rows of one type look: headings by field. The fields in
// shown make the table that is the default.
type layout struct {
	headings header
	shown    []string
	quiet    string
}

// A header is headings by field. Label is Docker's way to show one label.
type header map[string]string

// Label returns the heading of a label: what follows its last dot.
func (header) Label(name string) string {
	return strings.ToUpper(name[strings.LastIndexByte(name, '.')+1:])
}

// A labelled row can show one label.
type labelled map[string]string

// Label returns the value of a label.
func (l labelled) Label(name string) string { return l[name] }

var escapes = strings.NewReplacer(`\t`, "\t", `\n`, "\n")

// show prints rows, structs whose fields are text, as a list is to be shown.
func show[T any](l list, w io.Writer, look layout, rows []T) error {
	format := l.format
	if l.quiet {
		format = "{{." + look.quiet + "}}"
	}
	switch {
	case format == "json":
		format = "{{json .}}"
	case format == "" || format == "table":
		return table(w, look, "{{."+strings.Join(look.shown, "}}\t{{.")+"}}", rows)
	case strings.HasPrefix(format, "table "):
		return table(w, look, escapes.Replace(strings.TrimPrefix(format, "table ")), rows)
	}
	t, err := parse(escapes.Replace(format))
	if err != nil {
		return err
	}
	for _, r := range rows {
		if err := execute(t, w, r); err != nil {
			return err
		}
	}
	return nil
}

func table[T any](w io.Writer, look layout, text string, rows []T) error {
	t, err := parse(text)
	if err != nil {
		return err
	}
	head, err := t.Clone()
	if err != nil {
		return err
	}
	// A tabwriter writes every cell by itself.
	all := bufio.NewWriter(w)
	tw := tabwriter.NewWriter(all, 10, 1, 3, ' ', 0)
	if err := execute(head.Funcs(headFunctions), tw, look.headings); err != nil {
		return err
	}
	for _, r := range rows {
		if err := execute(t, tw, r); err != nil {
			return err
		}
	}
	return errors.Join(tw.Flush(), all.Flush())
}

func parse(text string) (*template.Template, error) {
	t, err := template.New("template").Funcs(functions).Parse(text)
	if err != nil {
		return nil, badFormat(err)
	}
	return t, nil
}

func badFormat(err error) error {
	return usage(fmt.Errorf("--format: %s", strings.TrimPrefix(err.Error(), "template: ")))
}

// execute writes a line of v, or nothing if the template does not fit.
func execute(t *template.Template, w io.Writer, v any) error {
	var b bytes.Buffer
	if err := t.Execute(&b, v); err != nil {
		return badFormat(err)
	}
	b.WriteByte('\n')
	_, err := w.Write(b.Bytes())
	return err
}

// inspect prints values as a JSON array, or each by a template. As with Docker
// a template may use the names of the fields (.ID) or those of the JSON (.Id).
func inspect[T any](w io.Writer, format string, values []T) error {
	if format == "" || format == "json" {
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		if format == "" {
			e.SetIndent("", "    ")
		}
		return e.Encode(values)
	}
	t, err := parse(escapes.Replace(format))
	if err != nil {
		return err
	}
	for _, v := range values {
		err := execute(t, w, v)
		if err == nil {
			continue
		}
		raw, jerr := asMap(v)
		if jerr != nil || execute(t.Option("missingkey=error"), w, raw) != nil {
			return err
		}
	}
	return nil
}

func asMap(v any) (m map[string]any, err error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	err = d.Decode(&m)
	return m, err
}
